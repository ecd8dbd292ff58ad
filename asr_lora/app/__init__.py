"""The page where people speak to a model: `python -m asr_lora.app`. Only `layout.py` knows gradio."""
