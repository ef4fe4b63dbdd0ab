"""The page of `zoo serve`: drop, paste or photograph an image, see its classes and where the network looks."""

from collections.abc import Sequence

from zoo.analysis.page.html import document, element
from zoo.analysis.page.style import STYLE

_STYLE = (
    STYLE
    + """
.drop{display:block;border:2px dashed var(--soft);border-radius:12px;padding:2rem 1rem;text-align:center;cursor:pointer}
.drop.over{border-color:var(--accent);background:rgba(var(--heat),.12)}
.drop:focus-within{outline:3px solid var(--accent);outline-offset:2px}
.drop input{position:absolute;opacity:0;width:1px;height:1px}
.bar{display:grid;grid-template-columns:minmax(6rem,14rem) 1fr 4.5rem;gap:.6rem;align-items:center;width:100%;border:0;
background:none;color:inherit;font:inherit;text-align:left;padding:.25rem .4rem;border-radius:6px;cursor:pointer}
.bar:hover,.bar[aria-pressed=true]{background:rgba(var(--heat),.14)}
.bar span:first-child{overflow-wrap:anywhere}.bar span:last-child{text-align:right;font-variant-numeric:tabular-nums}
progress{width:100%;height:.8rem;accent-color:var(--accent)}
button.plain,select{font:inherit;padding:.35rem .8rem;border:1px solid var(--line);border-radius:8px;
background:var(--card);color:inherit;cursor:pointer}
.views{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}.views img{width:15rem;height:auto}
.nearest{display:flex;flex-wrap:wrap;gap:1rem;list-style:none;padding:0}.nearest li{width:8rem;overflow-wrap:anywhere}
.nearest img{width:8rem;height:auto}.nearest small{display:block;color:var(--soft)}
video{max-width:100%;width:20rem;border-radius:8px;display:block;margin:.6rem 0}
[hidden]{display:none!important}
"""
)

_SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
let current = null, request = 0, stream = null;

function say(text, bad) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", Boolean(bad));
}

async function classify(blob, target) {
  const number = ++request;
  current = blob;
  say("Classifying \\u2026");
  let answer;
  try {
    const query = target === null ? "" : "?target=" + encodeURIComponent(target);
    const response = await fetch("/classify" + query, {method: "POST", body: blob});
    answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
  } catch (error) {
    if (number === request) say(error.message, true);
    return;
  }
  if (number === request) show(answer);
}

function show(answer) {
  say(answer.top[0].name + ", " + (100 * answer.top[0].probability).toFixed(1) + " %");
  at("result").hidden = false;
  at("input").src = answer.image;
  at("map-figure").hidden = !answer.map;
  if (answer.map) {
    at("map").src = answer.map;
    at("map").alt = "Grad-CAM of " + answer.target;
    at("map-text").textContent = "Evidence for " + answer.target + " (" + (100 * answer.target_probability).toFixed(1)
      + " %) at " + answer.stage;
  }
  at("nearest-section").hidden = !answer.nearest.length;
  at("nearest").replaceChildren(...answer.nearest.map(found => {
    const item = document.createElement("li"), image = document.createElement("img");
    const name = document.createElement("span"), file = document.createElement("small");
    image.src = found.image;
    image.alt = "";
    image.className = "pixels";
    name.textContent = found.label + ", " + found.similarity.toFixed(2);
    file.textContent = found.file;
    item.append(image, name, file);
    return item;
  }));
  at("class").value = answer.target;
  const list = at("top");
  list.replaceChildren();
  for (const entry of answer.top) {
    const item = document.createElement("li"), button = document.createElement("button");
    const name = document.createElement("span"), bar = document.createElement("progress");
    const share = document.createElement("span");
    name.textContent = entry.name;
    bar.max = 1;
    bar.value = entry.probability;
    bar.setAttribute("aria-hidden", "true");
    share.textContent = (100 * entry.probability).toFixed(1) + " %";
    button.className = "bar";
    button.setAttribute("aria-pressed", String(entry.name === answer.target));
    button.append(name, bar, share);
    button.addEventListener("click", () => classify(current, entry.name));
    item.append(button);
    list.append(item);
  }
}

function take(files) {
  const file = [...files].find(one => one.size);
  if (file) classify(file, null); else say("That holds no file.", true);
}

const drop = at("drop");
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, event => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
for (const name of ["dragover", "drop"]) window.addEventListener(name, event => event.preventDefault());
at("file").addEventListener("change", event => take(event.target.files));
window.addEventListener("paste", event => take(event.clipboardData.files));
at("class").addEventListener("change", event => current && classify(current, event.target.value));

at("camera").addEventListener("click", async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    say("No camera: " + error.message, true);
    return;
  }
  at("video").srcObject = stream;
  at("live").hidden = false;
  await at("video").play();
});
at("shoot").addEventListener("click", () => {
  const video = at("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => classify(blob, null), "image/png");
});
at("stop").addEventListener("click", () => {
  stream.getTracks().forEach(track => track.stop());
  at("live").hidden = true;
});
"""


def page(title: str, classes: Sequence[str], has_map: bool) -> str:
    """Return the page.

    Args:
        title: name of the checkpoint.
        classes: names of its classes.
        has_map: True if Grad-CAM can be drawn.
    """
    names = sorted(dict.fromkeys(classes), key=str.casefold)
    choice = element("input", id="class", hidden=True)
    if has_map:
        options = [element("option", name, value=name) for name in names]
        label = element("label", "Show the evidence for ", for_="class")
        choice = element("p", label, element("select", options, id="class"))
    drop = element(
        "label", element("strong", "Drop an image here"), ", paste one, or press to choose a file",
        element("input", type="file", accept="image/*", id="file"), id="drop", class_="drop",
    )  # fmt: skip
    camera = element(
        "div", element("video", id="video", muted=True, playsinline=True),
        element("button", "Take a picture", id="shoot", type="button", class_="plain"), " ",
        element("button", "Stop the camera", id="stop", type="button", class_="plain"), id="live", hidden=True,
    )  # fmt: skip
    result = element(
        "section", element("h2", "Classes", id="result-title"), element("ol", id="top", class_="plain"), choice,
        element(
            "div",
            element("figure", element("img", id="input", alt="The network's input", class_="pixels"),
                    element("figcaption", "Network input")),
            element("figure", element("img", id="map", alt="", class_="pixels"),
                    element("figcaption", id="map-text"), id="map-figure"),
            class_="views",
        ),
        element(
            "div", element("h3", "Nearest training images"),
            element("p", "By the network's features, with their classes and the cosine similarity.", class_="soft"),
            element("ol", id="nearest", class_="nearest"), id="nearest-section", hidden=True,
        ),
        id="result", aria_labelledby="result-title", hidden=True,
    )  # fmt: skip
    body = element(
        "main",
        element("section", element("h2", "Image"), drop,
                element("p", element("button", "Use the camera", id="camera", type="button", class_="plain")), camera,
                element("p", id="status", role="status")),
        result,
    )  # fmt: skip
    about = f"{len(classes):,} classes. The image is sent to this computer only."
    return document(
        title, _STYLE, element("header", element("h1", title), element("p", about, class_="soft")), body,
        script=_SCRIPT, images="data: blob:", connect="'self'",
    )  # fmt: skip
