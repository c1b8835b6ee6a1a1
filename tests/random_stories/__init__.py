"""Stories made up at random, told in Perl on the original and in Python on this package."""
