"""Files that are whole or not there, and hold no pickles: checkpoints, run directories, random states."""
