"""The command line: one file per command. Parses, calls `workflow`, prints. Results on stdout, all else on stderr."""
