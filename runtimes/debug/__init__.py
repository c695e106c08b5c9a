"""Which module of the network does an export get wrong?"""
