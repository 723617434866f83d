"""The tabs of the page, in Gradio. What they do is in `privgen.webpage`, which needs no Gradio."""
