"""Judging drawn pictures and given answers."""
