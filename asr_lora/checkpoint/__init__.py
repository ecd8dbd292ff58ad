"""Where base weights come from: a Hub id, a local Hugging Face directory, or a CTranslate2 (faster-whisper) one."""
