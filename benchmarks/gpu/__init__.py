"""One GPU, measured in pieces: `prepare` the exports, `measure` as long as there is time, `merge` what was found."""
