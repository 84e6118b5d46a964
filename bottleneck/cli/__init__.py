"""The command line: one file per command, flags → config → one library call → printed result."""
