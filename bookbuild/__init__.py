"""The build of the book: which chapters there are, which must run again, running them, and making the site.

`python -m bookbuild --help` lists the commands; the Makefile calls them.
"""
