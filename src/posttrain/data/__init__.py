"""From files and data sets of the hub to tokenised rows."""
