"""Modules that find what is damaged in prepared files and what is bad in raw data, and say where it is."""
