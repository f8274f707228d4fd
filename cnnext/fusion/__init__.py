"""What `cnnext.fuse` is made of: reading a graph (match.py), rewriting it, and the modules that it puts there."""
