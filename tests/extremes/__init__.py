"""Every kernel at extremes, beside torch and float64: a file for each library, a case for each of its functions."""
