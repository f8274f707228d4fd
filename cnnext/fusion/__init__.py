"""What `cnnext.fuse` is made of: reading a graph (match.py), rewriting it (rewrite.py), and the modules it puts there."""
