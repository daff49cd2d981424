"""The folder of plugins that volatility3 is given: it imports each file in here as one of its own."""
