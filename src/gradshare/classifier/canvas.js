// A canvas to draw on. The value is the drawing as a PNG in base64; an empty one clears the canvas.
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
pen.lineWidth = 20;
pen.lineCap = pen.lineJoin = 'round';
const clear = () => pen.clearRect(0, 0, canvas.width, canvas.height);
const done = value => { props.value = value; trigger('input'); };
const at = event => [event.offsetX, event.offsetY].map(v => v * canvas.width / canvas.clientWidth);
canvas.onpointerdown = event => {
  canvas.setPointerCapture(event.pointerId);
  pen.beginPath();
  pen.moveTo(...at(event));
  canvas.onpointermove(event);
};
canvas.onpointermove = event => {
  if (event.buttons) { pen.lineTo(...at(event)); pen.stroke(); }
};
canvas.onpointerup = () => done(canvas.toDataURL().split(',')[1]);
element.querySelector('button').onclick = () => { clear(); done(''); };
watch('value', () => { if (!props.value) clear(); });
