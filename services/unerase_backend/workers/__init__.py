"""The processes that Ray runs the replicas in, each a copy of one process that has imported the libraries once.

An own process for each replica would import Ray Serve, and most of them torch, diffusers and transformers too: three
seconds of CPU time and 250 MB each. Here a template imports them once, and copies itself (fork) for each worker that
Ray asks for; the copies share its memory until they write to it.

`starting` starts the template beside Ray. `template` is its program, and `entry` the script that Ray runs in place of
its own worker: it asks the template for a copy and ends. Without a template it becomes the worker itself.
"""
