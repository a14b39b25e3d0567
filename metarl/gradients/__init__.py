"""Derivatives through an adaptation."""
