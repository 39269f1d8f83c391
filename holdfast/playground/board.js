// The drawing board: a canvas whose picture is uploaded when the pen is lifted.
const canvas = element.querySelector("canvas");
const ink = element.querySelector("input");
const pen = canvas.getContext("2d");
let at = null;
let waiting = null;

function blank() {
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const across = canvas.width / box.width;
  return [(event.clientX - box.left) * across, (event.clientY - box.top) * across];
}

function line(to) {
  pen.strokeStyle = ink.value;
  pen.lineWidth = canvas.width / 13;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(...at);
  pen.lineTo(...to);
  pen.stroke();
  at = to;
}

function send() {
  clearTimeout(waiting);
  waiting = setTimeout(() => canvas.toBlob(async (picture) => {
    const sent = await upload(new File([picture], "drawing.png", { type: "image/png" }));
    trigger("submit", { path: sent.path });
  }), 350);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  at = place(event);
  line(at);
});
canvas.addEventListener("pointermove", (event) => { if (at) line(place(event)); });
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => { if (at) { at = null; send(); } });
}
element.querySelector("button").addEventListener("click", blank);
blank();
