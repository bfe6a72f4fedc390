"""The smallest complete method: copy this folder to begin one of your own.

    encoder.py       per-chunk input -> control
    network.py       the weights, a Flax linen module
    transformer.py   cache, denoising and commit of a chunk
    decoder.py       latent -> video
    runner.py        files in and out
    config.py        the method as values, and its slugs

It follows the template recipe of NVIDIA/flashdreams (recipes/template). There are no
trained weights; its video is noise that follows a random control.
"""
