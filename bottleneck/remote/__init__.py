"""Files behind URLs: how they are opened, asked for again, and given up."""
