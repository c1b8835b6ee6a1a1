"""Random stories, run in Perl on the original and in Python on this package."""
