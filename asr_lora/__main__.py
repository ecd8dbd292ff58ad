"""The command without its script:  python -m asr_lora train data.language=nl"""

from asr_lora.cli import main

if __name__ == "__main__":
    main()
