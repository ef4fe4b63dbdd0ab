"""Normalisations of the input, licences and training data that rows of WEIGHTS name."""

from zoo.data.images.preprocess import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF = ((0.5,) * 3, (0.5,) * 3)
#: Keras's "caffe" mode: the mean colour is subtracted in 0..255, in the order BGR.
CAFFE = ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3)

APACHE, BSD, MIT, NON_COMMERCIAL = "Apache-2.0", "BSD-3-Clause", "MIT", "CC-BY-NC-4.0"

IMAGENET_1K, IMAGENET_21K, CIFAR_10 = "ImageNet-1k", "ImageNet-21k", "CIFAR-10"
