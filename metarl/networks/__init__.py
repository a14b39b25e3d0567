"""Policies and memories."""
