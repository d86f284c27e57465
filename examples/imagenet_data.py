"""Write lists of ID and OOD images from six public repositories: ``python examples/imagenet_data.py DATA``.

DATA is the folder that they were cloned into. It gets image lists, the names of the classes and ``imagenet.yml`` for
``openood-adascale evaluate --config``. No choice is random. OOD sets that were not cloned are left out.
"""

import argparse
import sys
from pathlib import Path

import yaml

ENDS = (".jpg", ".jpeg", ".png")
ID = "imagenet-sample-images"
TEXTURES = "DeepTexture/images"
FLOWERS = "Machine-Learning-Class/lab3/flowers/test"
SCENES = "spatial-pyramid-matching-scene-recognition/data/test"
CIFAR = "CIFAR-100-dataset/test"
CELLS = "BCCD_Dataset/BCCD/JPEGImages"

# Of each repository only what ImageNet has no class for. Left out are, for instance, daisies, cobwebs (class 815, spider
# web), bubbles (971, bubble), coasts (978, seashore), mountains (970, alp) and rooms full of ImageNet's furniture.
VALIDATION = ("banded", "blotchy")
SETS = {
    "near": {
        "flowers": (
            FLOWERS,
            (
                "bluebell", "buttercup", "colts-foot", "dandelion", "fritillary", "iris", "lily-valley", "pansy",
                "sunflower", "tigerlily", "windflower",
            ),
            20,
        ),
        "scenes": (SCENES, ("Forest", "Highway", "InsideCity", "Street", "Suburb", "TallBuilding"), 40),
    },
    "far": {
        "textures": (
            TEXTURES,
            ("braided", "bumpy", "chequered", "cracked", "crosshatched", "crystalline"),
            60,
        ),
        "cifar100": (
            CIFAR,
            (
                "baby", "boy", "caterpillar", "cloud", "dolphin", "flatfish", "forest", "girl", "house", "man", "maple_tree",
                "oak_tree", "palm_tree", "pear", "pine_tree", "plain", "poppy", "possum", "raccoon", "road", "rose",
                "skyscraper", "tulip", "willow_tree", "woman",
            ),
            20,
        ),
        "cells": (CELLS, (".",), 150),
    },
}  # fmt: skip


def images_in(folder):
    """Return the names of the images in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in ENDS)


def id_images(data):
    """Return validation and test images, as (path, class), and the names of the classes.

    One image of each class, named as n01440764_tench.JPEG: sorted, the files are the classes' order. Of ten, three are for
    validation.
    """
    names = images_in(data / ID)
    listed = [(f"{ID}/{name}", number) for number, name in enumerate(names)]
    validation = [one for one in listed if one[1] % 10 in (0, 3, 6)]
    classes = [Path(name).stem.partition("_")[2].replace("_", " ") for name in names]
    return validation, [one for one in listed if one[1] % 10 not in (0, 3, 6)], classes


def ood_images(data, where, folders, count):
    """Return ``count`` images of each folder, evenly spaced over the sorted files (or all), as (path, −1)."""
    found = []
    for folder in folders:
        place = Path(where) / folder
        names = images_in(data / place)
        wanted = min(count, len(names))
        found += [((place / names[i * len(names) // wanted]).as_posix(), -1) for i in range(wanted)]
    return found


def write_list(file, listed):
    """Write an image list as OpenOOD's: a path, relative to the list's folder, and a class in each line."""
    file.write_text("".join(f"{path} {label}\n" for path, label in listed), encoding="utf-8")
    print(f"{file}: {len(listed)} images")
    return file.as_posix()


def write(data):
    """Write lists, classes and options for ``evaluate``, and return the YAML file of the options."""
    validation, test, classes = id_images(data)
    (data / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    options = {
        "id": write_list(data / "id.txt", test),
        "val": write_list(data / "id_val.txt", validation),
        "ood_val": write_list(data / "textures_val.txt", ood_images(data, TEXTURES, VALIDATION, 60)),
        "classes": (data / "classes.txt").as_posix(),
        "cache_dir": (data / "features").as_posix(),
        "batch_size": 16,  # the command's 64 take 9 to 13 GB for the gradient
    }
    for split, sets in SETS.items():
        there = {name: chosen for name, chosen in sets.items() if (data / chosen[0]).is_dir()}
        options[split] = {
            name: write_list(data / f"{name}.txt", ood_images(data, *chosen))
            for name, chosen in there.items()
        }
        for name in sets.keys() - there.keys():
            print(f"{name}: left out, since there is no {data / sets[name][0]}")
        if not there:
            sys.exit(f"{data}: clone one of the {split}-OOD sets, too: {', '.join(sets)}")
    file = data / "imagenet.yml"
    file.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    print(f"{file}: for openood-adascale evaluate --config")
    return file


def main(words=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA")
    data = parser.parse_args(words).data
    for needed in (ID, TEXTURES):
        if not (data / needed).is_dir():
            sys.exit(f"{data / needed}: there is none; clone it into {data} (README.md says from where)")
    write(data)


if __name__ == "__main__":
    main()
