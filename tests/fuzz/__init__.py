"""Damaged and hostile files for everything that reads files: `python -m tests.fuzz` (`make fuzz`).

`mutations` makes the files, `targets` is the table of what reads them, `watch` sees what reading does beside reading,
`trial` runs one target, `__main__` runs them all, each in a process of its own that may be killed.

`python -m tests.fuzz.cache` damages entries of the cache: `damage` does so, `cache_entries` is the table of what reads them.
"""
