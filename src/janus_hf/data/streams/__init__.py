"""Functions that read sources which are not files on this machine: files at addresses, and streams of rows."""
