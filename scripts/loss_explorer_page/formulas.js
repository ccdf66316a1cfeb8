// The losses as utils/losses and utils/geometry/ltrb.py compute them, in double precision. No drawing here.
// z: logit. s = sigmoid(z): score. y: target. Class losses return [loss, gradient by z]; without alpha it is null.
"use strict";

const SIGMA_STEPS = 8; // of Newton's method

const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
const sigmoid = (z) => (z >= 0 ? 1 / (1 + Math.exp(-z)) : Math.exp(z) / (1 + Math.exp(z)));
const crossEntropy = (z, y) => softplus(z) - z * y;
const balance = (y, alpha) => (alpha === null ? 1 : y * alpha + (1 - y) * (1 - alpha));

function sigmoidFocalLoss(z, y, gamma, alpha) {
  const s = sigmoid(z), entropy = crossEntropy(z, y);
  const miss = y * (1 - s) + (1 - y) * s;
  const slope = gamma * Math.pow(miss, gamma - 1) * (1 - 2 * y) * s * (1 - s);
  const factor = Math.pow(miss, gamma), weight = balance(y, alpha);
  return [weight * factor * entropy, weight * (slope * entropy + factor * (s - y))];
}

function qualityFocalLoss(z, y, beta, alpha) {
  const s = sigmoid(z), entropy = crossEntropy(z, y), gap = s - y, size = Math.abs(gap);
  const slope = beta * Math.pow(Math.max(size, 1e-12), beta - 2) * s * (1 - s) * entropy;
  const factor = Math.pow(size, beta), weight = balance(y, alpha);
  return [weight * factor * entropy, weight * gap * (factor + slope)];
}

function background(z, gamma) { // s^gamma E(s, 0)
  const s = sigmoid(z), factor = Math.pow(s, gamma), entropy = softplus(z);
  return [factor * entropy, factor * (gamma * (1 - s) * entropy + s)];
}

function varifocalLoss(z, y, gamma, alpha) {
  if (y > 0) return [y * crossEntropy(z, y), y * (sigmoid(z) - y)];
  return background(z, gamma).map((value) => value * (alpha === null ? 1 : alpha));
}

function matchabilityAwareLoss(z, y, gamma) {
  if (y > 0) return [crossEntropy(z, Math.pow(y, gamma)), sigmoid(z) - Math.pow(y, gamma)];
  return background(z, gamma);
}

const CLASS_LOSSES = {
  FL: sigmoidFocalLoss, QFL: qualityFocalLoss, VFL: varifocalLoss, MAL: matchabilityAwareLoss,
};

// The score at which a class loss is smallest: a grid, then the interval around its best point narrowed.
function restingScore(loss, y, exponent, alpha) {
  const at = (s) => loss(Math.log(s / (1 - s)), y, exponent, alpha)[0];
  const steps = 1000;
  let best = 1;
  for (let i = 2; i < steps; i++) if (at(i / steps) < at(best / steps)) best = i;
  if (best === 1 && at(1e-9) < at(1 / steps)) return 0;
  if (best === steps - 1 && at(1 - 1e-9) < at(1 - 1 / steps)) return 1;
  let low = Math.max((best - 1) / steps, 1e-9), high = Math.min((best + 1) / steps, 1 - 1e-9);
  while (high - low > 1e-7) {
    const third = (high - low) / 3;
    if (at(low + third) < at(high - third)) high -= third; else low += third;
  }
  return (low + high) / 2;
}

function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((z) => Math.exp(z - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

const mean = (probabilities, f) => probabilities.reduce((sum, p, i) => sum + p * f(i), 0);
const integral = (logits) => mean(softmax(logits), (i) => i);

function codingVariance(mu, squared) { // [value, slope]
  let value = 1 / 6, slope = 0;
  for (let k = 1; k <= 5; k++) {
    const wave = Math.cos(2 * Math.PI * k * mu) * Math.exp(-2 * (Math.PI * k) ** 2 * squared);
    value -= wave / (Math.PI * k) ** 2;
    slope += 2 * wave;
  }
  return [value, slope];
}

function sideSigma(logits) {
  const probabilities = softmax(logits), mu = mean(probabilities, (i) => i);
  const variance = Math.max(mean(probabilities, (i) => i * i) - mu * mu, 0);
  let squared = Math.max(variance, SIGMA_FLOOR ** 2);
  for (let step = 0; step < SIGMA_STEPS; step++) {
    const [added, slope] = codingVariance(mu, squared);
    squared -= (squared + added - variance) / Math.max(1 + slope, 1e-3);
    squared = Math.max(squared, SIGMA_FLOOR ** 2);
  }
  return Math.sqrt(squared);
}

function twoBins(distance, numBins) { // [lower bin, weight of the bin above it]
  const clipped = Math.min(Math.max(distance, 0), numBins - 1);
  const low = Math.min(Math.floor(clipped), numBins - 2);
  return [low, clipped - low];
}

function distributionFocalLoss(logits, distance) {
  const [low, above] = twoBins(distance, logits.length);
  const top = Math.max(...logits);
  const logSum = top + Math.log(logits.reduce((sum, z) => sum + Math.exp(z - top), 0));
  return logSum - (1 - above) * logits[low] - above * logits[low + 1];
}

function twoBinEntropy(distance, numBins) {
  const above = twoBins(distance, numBins)[1];
  return [above, 1 - above].reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
}
