"""The release of a version: what refuses it, the builds, and what an installed wheel must do. Not part of the wheel."""
