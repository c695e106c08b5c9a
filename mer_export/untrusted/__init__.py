"""Everything that reads a stranger's bytes: pickles, torch archives, HDF5 and ONNX files, as data and never as code."""
