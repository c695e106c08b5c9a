"""Files without end, cut into blocks: any number of workers answer them, and a run that ended goes on."""
