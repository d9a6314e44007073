"""Datasets of CT slices, semantic maps and rated nodules: preparing, reading and describing them."""
