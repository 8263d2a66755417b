// The picture: before and after on both sides of a slider, the blur map above them, zoom and pan.

const STEP = 2, LARGE_STEP = 10, PAN = 60;

export function makeViewer(parts) {
  const { stage, pan, pictures, slider, opacity, zooms } = parts;
  const size = { width: 1, height: 1 };
  let share = 50; // percent of the stage's width that shows the image before
  let zoom = "fit";

  function setShare(value) {
    share = Math.min(100, Math.max(0, value));
    slider.setAttribute("aria-valuenow", String(Math.round(share)));
    slider.setAttribute("aria-valuetext", `${Math.round(share)} % before, ${100 - Math.round(share)} % restored`);
    stage.style.setProperty("--at", `${share}%`);
    cut();
  }

  // The slider is in the stage; the cut is in the pictures, which may be smaller, larger and moved.
  function cut() {
    const view = stage.getBoundingClientRect();
    const box = pictures.getBoundingClientRect();
    if (box.width === 0) return;
    const part = (view.left + (view.width * share) / 100 - box.left) / box.width;
    pictures.style.setProperty("--cut", `${100 * Math.min(1, Math.max(0, part))}%`);
  }

  function layout() {
    const view = { width: stage.clientWidth, height: stage.clientHeight };
    const ratio = window.devicePixelRatio || 1;
    const scale = zoom === "fit"
      ? Math.min(view.width / size.width, view.height / size.height)
      : Number(zoom) / ratio; // at 100 % a pixel of the image is a pixel of the screen
    const width = size.width * scale, height = size.height * scale;
    pictures.style.width = `${width}px`;
    pictures.style.height = `${height}px`;
    pictures.style.marginTop = `${Math.max(0, (view.height - height) / 2)}px`;
    pictures.classList.toggle("pixels", zoom !== "fit");
    pan.classList.toggle("large", width > view.width + 1 || height > view.height + 1);
    cut();
  }

  function setZoom(value) {
    const x = (pan.scrollLeft + pan.clientWidth / 2) / Math.max(1, pan.scrollWidth);
    const y = (pan.scrollTop + pan.clientHeight / 2) / Math.max(1, pan.scrollHeight);
    zoom = value;
    for (const [name, button] of Object.entries(zooms)) button.setAttribute("aria-pressed", String(name === value));
    layout();
    pan.scrollLeft = x * pan.scrollWidth - pan.clientWidth / 2;
    pan.scrollTop = y * pan.scrollHeight - pan.clientHeight / 2;
    cut();
  }

  slider.addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: share - STEP, ArrowDown: share - STEP, ArrowRight: share + STEP, ArrowUp: share + STEP,
      PageDown: share - LARGE_STEP, PageUp: share + LARGE_STEP, Home: 0, End: 100,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    setShare(moves[event.key]);
  });
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    slider.focus();
    event.preventDefault();
  });
  slider.addEventListener("pointermove", (event) => {
    if (!slider.hasPointerCapture(event.pointerId)) return;
    const view = stage.getBoundingClientRect();
    setShare((100 * (event.clientX - view.left)) / view.width);
  });

  pan.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-PAN, 0], ArrowRight: [PAN, 0], ArrowUp: [0, -PAN], ArrowDown: [0, PAN] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    pan.scrollLeft += moves[event.key][0];
    pan.scrollTop += moves[event.key][1];
  });
  pan.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0 || !pan.classList.contains("large")) return;
    pan.setPointerCapture(event.pointerId);
    pan.classList.add("dragged");
  });
  pan.addEventListener("pointermove", (event) => {
    if (!pan.classList.contains("dragged")) return;
    pan.scrollLeft -= event.movementX;
    pan.scrollTop -= event.movementY;
  });
  for (const kind of ["pointerup", "pointercancel"]) pan.addEventListener(kind, () => pan.classList.remove("dragged"));
  pan.addEventListener("scroll", cut);
  new ResizeObserver(layout).observe(stage);

  const setOpacity = () => {
    pictures.style.setProperty("--map", String(opacity.value / 100));
    opacity.setAttribute("aria-valuetext", `${opacity.value} %`);
  };
  opacity.addEventListener("input", setOpacity);
  for (const [name, button] of Object.entries(zooms)) button.addEventListener("click", () => setZoom(name));

  return {
    show(width, height) {
      Object.assign(size, { width, height });
      setOpacity();
      setZoom("fit");
      setShare(50);
    },
  };
}
