// The networks of mnist_dist.task.networks, computed as PyTorch computes them. Sums are taken in
// float64 and results kept in float32.

const EPSILON = 1e-5; // of nn.LayerNorm
const SIDE = 28;

// The weights in the page, as typed arrays with their shapes, by name.
function decodedWeights(network) {
  const text = atob(network.data);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const isHalf = network.precision === "float16";
  const weights = {};
  let position = 0;
  for (const [name, shape] of network.tensors) {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    for (let i = 0; i < values.length; i++) {
      values[i] = isHalf ? halfFloat(view.getUint16(position, true)) : view.getFloat32(position, true);
      position += isHalf ? 2 : 4;
    }
    weights[name] = { values, shape };
  }
  return weights;
}

// The number that 16 bits stand for (IEEE 754 binary16).
function halfFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Logits of an image: 784 grey values in [0, 1], ink 1.
function logitsOf(weights, pixels, normalization) {
  const { mean, std } = normalization;
  let values = Float32Array.from(pixels, (grey) => Math.fround(Math.fround(grey) - mean) / std);
  if (weights["conv1.weight"]) values = featuresOf(weights, values);
  for (let number = 1; weights[`fc${number}.weight`]; number++) {
    const isLast = !weights[`fc${number + 1}.weight`];
    values = linear(values, weights[`fc${number}.weight`], weights[`fc${number}.bias`]);
    if (!isLast) values = values.map((value) => Math.max(value, 0));
  }
  return values;
}

function linear(inputs, weight, bias) {
  const outputs = new Float32Array(weight.shape[0]);
  for (let row = 0; row < outputs.length; row++) {
    let sum = bias.values[row];
    const start = row * inputs.length;
    for (let i = 0; i < inputs.length; i++) sum += weight.values[start + i] * inputs[i];
    outputs[row] = sum;
  }
  return outputs;
}

// What the convolutions make of an image: values by channel, row and column.
function featuresOf(weights, pixels) {
  let maps = { values: pixels, channels: 1, side: SIDE };
  for (let number = 1; weights[`conv${number}.weight`]; number++) {
    const padding = number <= 3 ? 0 : 1;
    maps = convolution(maps, weights[`conv${number}.weight`], weights[`conv${number}.bias`], padding);
    if (number <= 2) maps = maxPool(maps);
    normalize(maps, weights[`norm${number}.weight`], weights[`norm${number}.bias`]);
    maps.values = maps.values.map((value) => Math.max(value, 0));
  }
  return maps.values;
}

function convolution(maps, weight, bias, padding) {
  const channels = weight.shape[0];
  const side = maps.side - 2 + 2 * padding;
  const values = new Float32Array(channels * side * side);
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const sum = bias.values[channel] + windowSum(maps, weight, channel, row - padding, column - padding);
        values[(channel * side + row) * side + column] = sum;
      }
    }
  }
  return { values, channels, side };
}

// The products of a 3x3 window of all maps, whose top left corner is given, with a channel's weights.
function windowSum(maps, weight, channel, top, left) {
  const { side } = maps;
  let sum = 0;
  for (let input = 0; input < maps.channels; input++) {
    const kernel = (channel * maps.channels + input) * 9;
    for (let y = 0; y < 3; y++) {
      const row = top + y;
      if (row < 0 || row >= side) continue;
      for (let x = 0; x < 3; x++) {
        const column = left + x;
        if (column < 0 || column >= side) continue;
        sum += weight.values[kernel + 3 * y + x] * maps.values[(input * side + row) * side + column];
      }
    }
  }
  return sum;
}

// The largest value of each 2x2 window; a last odd row or column is left out.
function maxPool(maps) {
  const { channels, side: before } = maps;
  const side = Math.floor(before / 2);
  const values = new Float32Array(channels * side * side);
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const corner = (channel * before + 2 * row) * before + 2 * column;
        const above = Math.max(maps.values[corner], maps.values[corner + 1]);
        const below = Math.max(maps.values[corner + before], maps.values[corner + before + 1]);
        values[(channel * side + row) * side + column] = Math.max(above, below);
      }
    }
  }
  return { values, channels, side };
}

// Layer normalisation over the maps at each pixel, in place.
function normalize(maps, weight, bias) {
  const { values, channels } = maps;
  const size = maps.side * maps.side;
  for (let pixel = 0; pixel < size; pixel++) {
    let mean = 0;
    for (let channel = 0; channel < channels; channel++) mean += values[channel * size + pixel] / channels;
    let variance = 0;
    for (let channel = 0; channel < channels; channel++) {
      variance += (values[channel * size + pixel] - mean) ** 2 / channels;
    }
    const factor = 1 / Math.sqrt(variance + EPSILON);
    for (let channel = 0; channel < channels; channel++) {
      const at = channel * size + pixel;
      values[at] = (values[at] - mean) * factor * weight.values[channel] + bias.values[channel];
    }
  }
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
