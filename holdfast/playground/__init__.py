"""The playground: a page in the browser on which an image and an attack can be played with.

- `serve`: the program, from its options to the open page
- `guard`: what may come in, and what goes out
- `workshop`: models, images and attacks behind the page
- `page`: the page itself, made of Gradio's parts
- `panel`: what was found, as HTML

Gradio is an optional extra, `pip install 'holdfast[play]'`, and imported only where it is asked
for.
"""
