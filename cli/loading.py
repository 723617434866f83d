"""What loading a model says on standard error."""

import os


def quiet_loading() -> None:
    """Keep bars and warnings of Diffusers and Transformers about loading away; downloads keep their bars.

    To be called before either is imported.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()  # which Transformers has switched off with its own
