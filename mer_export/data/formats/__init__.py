"""One folder per kind of files: its reader and, where there is one, its synthetic writer. Each announces a `FORMAT`."""
