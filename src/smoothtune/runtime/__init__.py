"""Process-wide state and nothing else: device, threads, precision, random streams. Other rooms ask here."""
