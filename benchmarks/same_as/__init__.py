"""Whether two commits do the same: small runs through the command line, compared byte for byte."""
