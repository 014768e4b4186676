"""Datasets on the worker's side: the process that reads uploads, and the columns that training reads."""
