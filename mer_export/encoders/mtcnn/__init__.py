"""MTCNN, which finds faces: three small networks, each of which looks again at what the one before found.

Paper: Zhang, Zhang, Li, Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks",
IEEE Signal Processing Letters 23(10), 2016. Public code: `facenet-pytorch` (`models/mtcnn.py`,
`models/utils/detect_face.py`), whose package carries the weights.
"""
