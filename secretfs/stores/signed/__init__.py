"""Stores of clouds whose API is JSON with a signature: Alibaba Cloud, Huawei Cloud, Tencent Cloud, and what they share.

Their SDKs cost up to 60 MB and a second of CPU each, for two or three requests that one function signs.
"""
