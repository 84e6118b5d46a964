"""Ways to run a trunk fast behind one small protocol."""
