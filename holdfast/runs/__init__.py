"""Run folders and the files in them: locks, identities, atomic writes, progress."""
