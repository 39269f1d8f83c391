"""Holdfast's version and address, in one place."""

VERSION = "0.2.0"
PROJECT = "https://github.com/holdfast-robustness/holdfast"
