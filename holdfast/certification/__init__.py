"""Certificates: what no attack inside a radius can change."""
