"""Where raw memory lies: the rules of machines, lists of ranges, and doubts."""
