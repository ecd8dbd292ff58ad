"""The main job on a machine without network accounts or a GPU."""
