"""What came out, for people: the demonstration, the page of some runs, and what a file of ours holds."""
