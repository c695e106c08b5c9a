"""Programs that other tools' environments run: files in, files out, nothing of this project."""
