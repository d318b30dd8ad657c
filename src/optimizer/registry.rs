//! What is registered: groups, parameters, the bytes that their views occupy, and step counts. Uses no GPU.
//!
//! A change bumps a revision and does nothing else. Whatever is derived from the registry compares revisions where it is used.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::handles::{GroupId, Parameter, ParameterId, Shard, StepCounts};
use super::slots::{Key, Slots};
use super::step::{Step, Targets, Update};
use crate::error::{Error, ErrorKind, Role, ViewError};
use crate::hyperparameters::{Group, Hyperparameters};
use crate::kernels::abi::QUAD_ELEMENTS;
use crate::plan::cohorts::Cohorts;
use crate::plan::overlap::{Occupied, Overlap, first_overlap, sorted_ranges};
use crate::plan::places::{Buffers, Places};
use crate::plan::views::{OwnedViews, Views};
use crate::rules::range::in_range;
use crate::rules::{Rule, RuleKind};
use crate::storage::block::{BlockLayout, QUANT_BLOCK_ELEMENTS};
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::random::key_of;
use crate::storage::state::StateFormat;

/// A number for each kind of change, bumped by every change of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Parameters were added or removed.
    pub parameters: u64,
    /// Registered views were added, removed or moved, or need other kernels.
    pub views: u64,
    /// Groups were added, or hyperparameters changed.
    pub groups: u64,
    /// Parameters changed their cohorts.
    pub cohorts: u64,
    /// Step counts were set, other than by steps.
    pub counts: u64,
    /// Factors of columns changed.
    pub column_factors: u64,
}

/// Groups, parameters and step counts of one optimizer.
#[derive(Debug)]
pub struct Registry {
    id: u64,
    settings: Settings,
    groups: Slots<GroupRecord>,
    parameters: Slots<Record>,
    by_label: HashMap<String, Key>,
    occupied: Occupied,
    cohorts: Cohorts,
    /// The number of parameters without registered views.
    without_views: usize,
    /// The number of groups that were ever added.
    groups_added: u64,
    /// Parameters with factors of columns, by index.
    with_factors: BTreeSet<usize>,
    revisions: Revisions,
}

/// What a registry has to know about its optimizer.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seed of stochastic rounding.
    pub seed: u64,
    /// The most bytes of a parameter.
    pub most_bytes: u64,
    /// The most parameters.
    pub most_parameters: usize,
    /// The largest step count that a parameter can continue from.
    pub most_steps: u64,
    /// Whether a step writes gradients.
    pub zero_gradients: bool,
    /// The most storage buffers of a kernel.
    pub most_storage_buffers: u32,
    /// Whether steps count learning rates in histograms.
    pub has_histograms: bool,
}

#[derive(Clone, Copy, Debug)]
struct GroupRecord {
    group: Group,
    /// Groups keep the order in which they were added.
    order: u64,
}

/// A registered parameter.
#[derive(Debug)]
pub struct Record {
    pub label: String,
    /// Its number of elements.
    pub len: u64,
    pub dtype: DType,
    pub group: GroupId,
    pub layout: BlockLayout,
    /// The part of a tensor that it is; the whole tensor if it is not sharded.
    pub shard: Shard,
    /// Key of its random numbers.
    pub random_key: [u32; 2],
    pub views: Option<OwnedViews>,
    /// Factors of the learning rates of its columns.
    pub column_factors: Option<Arc<[f32]>>,
}

/// The parameters of one step.
#[derive(Debug)]
pub struct Selection {
    /// Which parameters step, by index; `None` means all.
    pub present: Option<Vec<bool>>,
    /// Which cohorts step; `None` means all.
    stepping: Option<Vec<bool>>,
    /// Where they lie, if not at their registered views.
    pub located: Option<Located>,
}

/// Parameters at the views of one step.
#[derive(Debug)]
pub struct Located {
    /// Index and places of each parameter.
    pub parameters: Vec<(usize, Places)>,
    pub buffers: Buffers,
}

impl Selection {
    /// Whether a cohort steps.
    pub fn steps(&self, cohort: usize) -> bool {
        self.stepping.as_ref().is_none_or(|stepping| stepping[cohort])
    }
}

impl Registry {
    /// The most factors of columns that a parameter can have.
    const MOST_COLUMN_FACTORS: usize = 1 << 16;

    pub fn new(settings: Settings) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            settings,
            groups: Slots::default(),
            parameters: Slots::default(),
            by_label: HashMap::new(),
            occupied: Occupied::default(),
            cohorts: Cohorts::default(),
            without_views: 0,
            groups_added: 0,
            with_factors: BTreeSet::new(),
            revisions: Revisions::default(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn revisions(&self) -> Revisions {
        self.revisions
    }

    // Groups.

    pub fn add_group(&mut self, group: Group) -> Result<GroupId, Error> {
        group.hyperparameters.validate()?;
        check_state_format(group.hyperparameters.rule, group.precision.state)?;
        self.check_declarations(group.hyperparameters.rule.kind())?;
        let key = self.groups.insert(GroupRecord { group, order: self.groups_added });
        self.groups_added += 1;
        self.revisions.groups += 1;
        Ok(GroupId { optimizer: self.id, key })
    }

    /// All custom rules of an optimizer are linked into one kernel, where no name may be declared twice.
    fn check_declarations(&self, rule: RuleKind) -> Result<(), Error> {
        let RuleKind::Custom(new) = rule else { return Ok(()) };
        for other in self.custom_rules() {
            if let RuleKind::Custom(old) = other
                && old != new
                && let Some(name) = new.common_declaration(old)
            {
                return Err(ErrorKind::CommonDeclaration { name, found: rule, other }.into());
            }
        }
        Ok(())
    }

    /// The custom rules of all groups, some of them more than once.
    pub fn custom_rules(&self) -> impl Iterator<Item = RuleKind> {
        let kinds = self.groups.iter().map(|(_, record)| record.group.hyperparameters.rule.kind());
        kinds.filter(|kind| matches!(kind, RuleKind::Custom(_)))
    }

    pub fn remove_group(&mut self, id: GroupId) -> Result<(), Error> {
        self.group(id)?;
        let mut members = self.parameters.iter().filter(|(_, record)| record.group == id);
        if let Some((_, first)) = members.next() {
            let (members, label) = (1 + members.count(), first.label.clone());
            return Err(ErrorKind::GroupInUse { members, label }.into());
        }
        self.groups.remove(id.key);
        Ok(())
    }

    pub fn group(&self, id: GroupId) -> Result<&Group, Error> {
        let found = self.groups.get(id.key).filter(|_| id.optimizer == self.id);
        found.map(|record| &record.group).ok_or_else(|| ErrorKind::UnknownGroup.into())
    }

    /// The group of a registered parameter.
    pub fn group_of(&self, record: &Record) -> &Group {
        // A group with parameters cannot be removed.
        &self.groups[record.group.key].group
    }

    /// The group with this index.
    pub fn group_at(&self, index: usize) -> Option<&Group> {
        self.groups.at(index).map(|record| &record.group)
    }

    /// The group of each index; `None` where it was removed.
    pub fn group_places(&self) -> impl ExactSizeIterator<Item = Option<&Group>> + Clone {
        (0..self.groups.end()).map(|index| self.group_at(index))
    }

    /// All groups in the order in which they were added.
    pub fn groups_in_order(&self) -> Vec<(GroupId, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, record)| record.order);
        groups.into_iter().map(|(key, record)| (GroupId { optimizer: self.id, key }, &record.group)).collect()
    }

    pub fn set_hyperparameters(
        &mut self,
        id: GroupId,
        hyperparameters: Hyperparameters,
    ) -> Result<(), Error> {
        self.check_hyperparameters(id, &hyperparameters)?;
        let before = self.group(id)?.hyperparameters;
        if before != hyperparameters
            && let Some(record) = self.groups.get_mut(id.key)
        {
            record.group.hyperparameters = hyperparameters;
            self.revisions.groups += 1;
            self.revisions.views += u64::from(before.has_caution() != hyperparameters.has_caution());
        }
        Ok(())
    }

    /// Checks that a group can have these hyperparameters.
    pub fn check_hyperparameters(&self, id: GroupId, hyperparameters: &Hyperparameters) -> Result<(), Error> {
        hyperparameters.validate()?;
        same_form(hyperparameters.rule, self.group(id)?.hyperparameters.rule)?;
        let with_factors = self.with_factors.iter().filter_map(|&index| self.parameters.at(index));
        with_factors
            .filter(|record| record.group == id)
            .try_for_each(|record| check_factors(record, hyperparameters))
    }

    // Parameters.

    pub fn add_parameter(&mut self, group: GroupId, parameter: Parameter<'_>) -> Result<ParameterId, Error> {
        let Parameter { label, len, dtype, state, shard, views } = parameter;
        let group_settings = *self.group(group).map_err(|error| error.about(label))?;
        if label.is_empty() {
            return Err(ErrorKind::EmptyLabel.into());
        }
        if self.by_label.contains_key(label) {
            return Err(ErrorKind::DuplicateLabel.of(label));
        }
        if len == 0 {
            return Err(ErrorKind::Empty.of(label));
        }
        let most = self.settings.most_bytes / dtype.bytes();
        if views.is_none() && len > most {
            return Err(ErrorKind::TooLong { len, dtype, most }.of(label));
        }
        let most = self.settings.most_parameters;
        if self.parameters.len() >= most {
            return Err(ErrorKind::TooMany { most }.of(label));
        }
        let shard = shard.unwrap_or(Shard::new(0, len));
        let layout = layout_of(label, shard.whole, dtype, state, group_settings)?;
        check_shard(shard, len, dtype, layout).map_err(|error| error.of(label))?;
        let index = self.parameters.next_index();
        if let Some(views) = &views {
            self.check_bindings(&group_settings, false, views).map_err(|error| error.of(label))?;
            self.occupy(index, label, (len, shard), dtype, views)?;
            self.revisions.views += 1;
        } else {
            self.without_views += 1;
        }
        let key = self.parameters.insert(Record {
            label: label.to_owned(),
            len,
            dtype,
            group,
            layout,
            shard,
            random_key: key_of(self.settings.seed, label),
            views: views.as_ref().map(OwnedViews::new),
            column_factors: None,
        });
        self.by_label.insert(label.to_owned(), key);
        self.cohorts.add_parameter(index, group.key.index() as u32);
        self.revisions.parameters += 1;
        self.revisions.counts += 1;
        Ok(ParameterId { optimizer: self.id, key })
    }

    pub fn remove_parameter(&mut self, id: ParameterId) -> Result<(), Error> {
        self.record(id)?;
        let Some(record) = self.parameters.remove(id.key) else { return Ok(()) };
        self.by_label.remove(&record.label);
        self.with_factors.remove(&id.key.index());
        match &record.views {
            Some(views) => self.vacate(id.key.index(), record.dtype, &views.borrow()),
            None => self.without_views -= 1,
        }
        self.cohorts.remove_parameter(id.key.index());
        self.revisions.parameters += 1;
        self.revisions.views += 1;
        self.revisions.cohorts += 1;
        self.revisions.counts += 1;
        Ok(())
    }

    pub fn set_views(&mut self, id: ParameterId, views: Views<'_>) -> Result<(), Error> {
        let record = self.record(id)?;
        let (label, len, dtype) = (record.label.clone(), (record.len, record.shard), record.dtype);
        self.check_bindings_of(record, &views)?;
        let (index, old) = (id.key.index(), record.views.clone());
        if let Some(old) = &old {
            self.vacate(index, dtype, &old.borrow());
        }
        if let Err(error) = self.occupy(index, &label, len, dtype, &views) {
            if let Some(old) = &old {
                self.occupy(index, &label, len, dtype, &old.borrow())?;
            }
            return Err(error);
        }
        self.without_views -= usize::from(old.is_none());
        if let Some(record) = self.parameters.get_mut(id.key) {
            record.views = Some(OwnedViews::new(&views));
        }
        self.revisions.views += 1;
        Ok(())
    }

    /// Sets the factors of a parameter's columns, or removes them if there are none.
    pub fn set_column_factors(&mut self, id: ParameterId, factors: &[f32]) -> Result<(), Error> {
        let record = self.record(id)?;
        let refused = |kind: ErrorKind| kind.of(&record.label);
        if factors.len() > Self::MOST_COLUMN_FACTORS {
            let (found, most) = (factors.len(), Self::MOST_COLUMN_FACTORS);
            return Err(refused(ErrorKind::ColumnFactors { found, most }));
        }
        for &factor in factors {
            let is_in_range = factor >= 0.0 && factor.is_finite();
            in_range("column_factors", factor.into(), "finite factors of at least 0", is_in_range)
                .map_err(|error| Error::from(error).about(&record.label))?;
        }
        let column_factors = (!factors.is_empty()).then(|| factors.into());
        let hyperparameters = self.group_of(record).hyperparameters;
        check_largest_factor(&record.label, column_factors.as_deref(), &hyperparameters)?;
        if let Some(views) = &record.views {
            self.check_bindings(self.group_of(record), column_factors.is_some(), &views.borrow())
                .map_err(refused)?;
        }
        let had_factors = record.column_factors.is_some();
        // Launches do not mix tensors with and without factors.
        self.revisions.views += u64::from(had_factors != column_factors.is_some());
        self.revisions.column_factors += 1;
        match column_factors {
            Some(_) => self.with_factors.insert(id.key.index()),
            None => self.with_factors.remove(&id.key.index()),
        };
        if let Some(record) = self.parameters.get_mut(id.key) {
            record.column_factors = column_factors;
        }
        Ok(())
    }

    /// Gives a parameter another length, at these views or at its registered ones.
    pub fn resize(&mut self, id: ParameterId, len: u64, views: Option<&Views<'_>>) -> Result<(), Error> {
        let record = self.record(id)?;
        let (label, dtype, old_len) = (record.label.clone(), record.dtype, record.len);
        let most = self.settings.most_bytes / dtype.bytes();
        if len > most {
            return Err(ErrorKind::TooLong { len, dtype, most }.of(&label));
        }
        if let Some(views) = views {
            self.check_bindings_of(record, views)?;
        }
        let (index, old) = (id.key.index(), record.views.clone());
        if let Some(old) = &old {
            self.vacate(index, dtype, &old.borrow());
        }
        let new = views.map(OwnedViews::new).or_else(|| old.clone());
        if let Some(new) = &new
            && let Err(error) = self.occupy(index, &label, (len, Shard::new(0, len)), dtype, &new.borrow())
        {
            if let Some(old) = &old {
                self.occupy(index, &label, (old_len, Shard::new(0, old_len)), dtype, &old.borrow())?;
            }
            return Err(error);
        }
        self.without_views -= usize::from(old.is_none() && new.is_some());
        if let Some(record) = self.parameters.get_mut(id.key) {
            record.len = len;
            record.shard = Shard::new(0, len);
            record.views = new;
        }
        self.revisions.views += 1;
        Ok(())
    }

    /// State has changed, other than by steps: step counts taken before are stale.
    pub fn mark_state_changed(&mut self) {
        self.revisions.counts += 1;
    }

    /// Takes a change of length back, and gives the parameter its old views or none.
    pub fn restore(&mut self, id: ParameterId, len: u64, views: Option<OwnedViews>) -> Result<(), Error> {
        let dtype = self.record(id)?.dtype;
        if views.is_none()
            && let Some(record) = self.parameters.get_mut(id.key)
            && let Some(taken) = record.views.take()
        {
            self.vacate(id.key.index(), dtype, &taken.borrow());
            self.without_views += 1;
        }
        self.resize(id, len, views.as_ref().map(OwnedViews::borrow).as_ref())
    }

    /// Moves a parameter to another group.
    pub fn set_group(&mut self, id: ParameterId, group: GroupId) -> Result<(), Error> {
        let record = self.record(id)?;
        let of = |error: Error| error.about(&record.label);
        let to = self.group(group).map_err(of)?;
        same_form(to.hyperparameters.rule, self.group_of(record).hyperparameters.rule).map_err(of)?;
        check_factors(record, &to.hyperparameters)?;
        if let Some(record) = self.parameters.get_mut(id.key) {
            record.group = group;
        }
        self.cohorts.set_group(id.key.index(), group.key.index() as u32);
        // The device's rows name the group of each parameter, and kernels depend on it.
        self.revisions.parameters += 1;
        self.revisions.cohorts += 1;
        self.revisions.counts += 1;
        Ok(())
    }

    pub fn record(&self, id: ParameterId) -> Result<&Record, Error> {
        let found = self.parameters.get(id.key).filter(|_| id.optimizer == self.id);
        found.ok_or_else(|| ErrorKind::UnknownParameter.into())
    }

    pub fn parameter(&self, label: &str) -> Option<ParameterId> {
        self.by_label.get(label).map(|&key| ParameterId { optimizer: self.id, key })
    }

    /// The parameter with this index.
    pub fn at(&self, index: usize) -> Option<&Record> {
        self.parameters.at(index)
    }

    /// All parameters, in the order of their indices.
    pub fn parameters(&self) -> impl Iterator<Item = (ParameterId, &Record)> {
        self.parameters.iter().map(|(key, record)| (ParameterId { optimizer: self.id, key }, record))
    }

    /// The number of parameters.
    #[cfg(feature = "checkpoint")]
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// One more than the largest index of a parameter.
    pub fn end(&self) -> usize {
        self.parameters.end()
    }

    /// Checks that a kernel can bind what a step of a parameter at these views needs.
    fn check_bindings(&self, group: &Group, has_factors: bool, views: &Views<'_>) -> Result<(), ErrorKind> {
        let Settings { most_storage_buffers: found, has_histograms, .. } = self.settings;
        // Without factors and masks WebGPU's least limit suffices.
        if !has_factors && views.row_mask.is_none() {
            return Ok(());
        }
        // Coefficients, segments, chunks, values, state, the table of columns and rows, and masks.
        let mut expected = 7;
        // Gradients in the buffer of the values are bound with them.
        expected += u64::from(views.values.buffer != views.gradients.buffer);
        expected += u64::from(views.shadow.is_some());
        expected += u64::from(has_histograms && group.hyperparameters.rule.kind().has_element_rates());
        let (limit, found) = ("max_storage_buffers_per_shader_stage", found.into());
        if found < expected { Err(ErrorKind::Limit { limit, found, expected }) } else { Ok(()) }
    }

    fn check_bindings_of(&self, record: &Record, views: &Views<'_>) -> Result<(), Error> {
        let checked = self.check_bindings(self.group_of(record), record.column_factors.is_some(), views);
        checked.map_err(|error| error.of(&record.label))
    }

    /// Checks a parameter's views and occupies their bytes; none on an error.
    fn occupy(
        &mut self,
        index: usize,
        label: &str,
        (len, shard): (u64, Shard),
        dtype: DType,
        views: &Views<'_>,
    ) -> Result<(), Error> {
        let refused = |(role, error)| ErrorKind::View { role, error }.of(label);
        let ends = views.check(len, dtype).map_err(refused)?;
        check_mask_of_shard(shard, views).map_err(|error| refused((Role::RowMask, error)))?;
        if let Some((mask, end)) = views.mask(&ends)
            && let Err(overlap) = self.occupied.take_mask(&mask, end, index)
        {
            return Err(refused((Role::RowMask, self.overlap_of(overlap, index, label))));
        }
        for (taken, ((role, view, _), end)) in views.each(dtype).zip(ends).enumerate() {
            if let Err(overlap) = self.occupied.take(&view, end, index, role) {
                for (_, earlier, _) in views.each(dtype).take(taken) {
                    self.occupied.release(&earlier);
                }
                if let Some(mask) = &views.row_mask {
                    self.occupied.release_mask(&mask.view, index);
                }
                return Err(refused((role, self.overlap_of(overlap, index, label))));
            }
        }
        Ok(())
    }

    /// The error of a view of a parameter that overlaps another one. A parameter may overlap itself, and has no record yet when it is added.
    fn overlap_of(&self, overlap: Overlap, index: usize, label: &str) -> ViewError {
        let Overlap { parameter, role: other_role, byte } = overlap;
        let other = self.parameters.at(parameter).filter(|_| parameter != index);
        let other_label = other.map_or(label, |record| &record.label).to_owned();
        ViewError::Overlap { other_role, other_label, byte }
    }

    fn vacate(&mut self, index: usize, dtype: DType, views: &Views<'_>) {
        if let Some(mask) = &views.row_mask {
            self.occupied.release_mask(&mask.view, index);
        }
        for (_, view, _) in views.each(dtype) {
            self.occupied.release(&view);
        }
    }

    // Steps.

    /// The parameters that a step names, checked. Regroups cohorts so that each steps as a whole or not at all.
    pub fn select(&mut self, step: &Step<'_>) -> Result<Selection, Error> {
        match step.targets {
            Targets::All => {
                let mut records = self.parameters.iter().filter(|_| self.without_views > 0);
                match records.find(|(_, record)| record.views.is_none()) {
                    Some((_, record)) => Err(ErrorKind::NoViews.of(&record.label)),
                    None => Ok(Selection { present: None, stepping: None, located: None }),
                }
            }
            Targets::Of(ids) => {
                let present = self.marked(ids.iter().copied())?;
                let mut records = ids.iter().filter_map(|&id| self.record(id).ok());
                if let Some(record) = records.find(|record| record.views.is_none()) {
                    return Err(ErrorKind::NoViews.of(&record.label));
                }
                Ok(self.split(present, None))
            }
            Targets::At(updates) => {
                let present = self.marked(updates.iter().map(|update| update.parameter))?;
                let located = self.locate(updates)?;
                Ok(self.split(present, Some(located)))
            }
        }
    }

    /// Marks parameters by index.
    fn marked(&self, ids: impl Iterator<Item = ParameterId>) -> Result<Vec<bool>, Error> {
        let mut present = vec![false; self.parameters.end()];
        for id in ids {
            let record = self.record(id)?;
            if std::mem::replace(&mut present[id.key.index()], true) {
                return Err(ErrorKind::Repeated.of(&record.label));
            }
        }
        Ok(present)
    }

    fn split(&mut self, present: Vec<bool>, located: Option<Located>) -> Selection {
        if self.cohorts.split(&present) {
            self.revisions.cohorts += 1;
        }
        let mut stepping = vec![false; self.cohorts.list().len()];
        for (index, _) in present.iter().enumerate().filter(|(_, is_present)| **is_present) {
            stepping[self.cohorts.of(index) as usize] = true;
        }
        Selection { present: Some(present), stepping: Some(stepping), located }
    }

    /// Checks the views of a step and numbers their buffers.
    fn locate(&self, updates: &[Update<'_>]) -> Result<Located, Error> {
        let mut buffers = Buffers::default();
        let mut parameters = Vec::with_capacity(updates.len());
        let mut ends = Vec::with_capacity(updates.len());
        for update in updates {
            let record = self.record(update.parameter)?;
            let checked = update.views.check(record.len, record.dtype);
            let refused = |(role, error)| ErrorKind::View { role, error }.of(&record.label);
            ends.push(checked.map_err(refused)?);
            check_mask_of_shard(record.shard, &update.views)
                .map_err(|error| refused((Role::RowMask, error)))?;
            self.check_bindings_of(record, &update.views)?;
            let places = buffers.locate(&update.views, record.dtype);
            parameters.push((update.parameter.key.index(), places));
        }
        let ranges = sorted_ranges(parameters.iter().map(|(_, places)| places).zip(ends));
        if let Some((range, other)) = first_overlap(&ranges, self.settings.zero_gradients) {
            let label = |update: usize| self.record(updates[update].parameter).map(|record| &record.label);
            let (other_role, other_label) = (other.role, label(other.update)?.clone());
            let error = ViewError::Overlap { other_role, other_label, byte: range.start };
            return Err(ErrorKind::View { role: range.role, error }.of(label(range.update)?));
        }
        Ok(Located { parameters, buffers })
    }

    /// Where all registered views lie.
    pub fn locate_registered(&self) -> Located {
        let mut buffers = Buffers::default();
        let parameters = self.parameters.iter().filter_map(|(key, record)| {
            let views = record.views.as_ref()?;
            Some((key.index(), buffers.locate(&views.borrow(), record.dtype)))
        });
        Located { parameters: parameters.collect(), buffers }
    }

    /// Counts a step of the selected parameters.
    pub fn advance(&mut self, selection: &Selection) {
        self.cohorts.advance(|cohort| selection.steps(cohort));
    }

    pub fn cohorts(&self) -> &Cohorts {
        &self.cohorts
    }

    /// Steps recorded for a parameter.
    pub fn steps(&self, id: ParameterId) -> u64 {
        self.cohorts.steps(id.key.index())
    }

    /// Sets the step counts of parameters.
    pub fn set_steps(&mut self, counts: impl IntoIterator<Item = (ParameterId, u64)>) {
        if self.cohorts.set_steps(counts.into_iter().map(|(id, steps)| (id.key.index(), steps))) {
            self.revisions.cohorts += 1;
        }
        self.revisions.counts += 1;
    }

    pub fn step_counts(&self) -> StepCounts {
        StepCounts { optimizer: self.id, revision: self.revisions.counts, cohorts: self.cohorts.clone() }
    }

    pub fn rewind(&mut self, counts: &StepCounts) -> Result<(), Error> {
        if counts.optimizer != self.id || counts.revision != self.revisions.counts {
            return Err(ErrorKind::StaleCounts.into());
        }
        self.cohorts.clone_from(&counts.cohorts);
        self.revisions.cohorts += 1;
        Ok(())
    }
}

/// Checks that a shard lies within its tensor, and starts and ends where its formats allow.
fn check_shard(shard: Shard, len: u64, dtype: DType, layout: BlockLayout) -> Result<(), ErrorKind> {
    let Shard { first, whole } = shard;
    let end = first.checked_add(len).filter(|&end| end <= whole);
    let Some(end) = end else {
        return Err(ErrorKind::Shard { first, end: first.saturating_add(len), whole });
    };
    let is_rounded_stochastically = layout.state != StateFormat::F32
        || dtype == DType::Bf16 && layout.master_weights == MasterWeights::None;
    let expected = match layout.state {
        StateFormat::Q8 => QUANT_BLOCK_ELEMENTS,
        _ if is_rounded_stochastically => QUAD_ELEMENTS.into(),
        _ => 1,
    };
    match [first, end].into_iter().find(|&found| found != whole && !found.is_multiple_of(expected)) {
        Some(found) => Err(ErrorKind::ShardAlignment { found, expected }),
        None => Ok(()),
    }
}

/// A shard starts at a whole row of its mask.
fn check_mask_of_shard(shard: Shard, views: &Views<'_>) -> Result<(), ViewError> {
    match views.row_mask {
        Some(mask) if !shard.first.is_multiple_of(mask.row_len) => {
            Err(ViewError::RowOfShard { first: shard.first, row_len: mask.row_len })
        }
        _ => Ok(()),
    }
}

/// How a parameter of a tensor of `whole` elements is stored. The states are those of its rule.
fn layout_of(
    label: &str,
    whole: u64,
    dtype: DType,
    state: Option<StateFormat>,
    group: Group,
) -> Result<BlockLayout, Error> {
    let precision = group.precision;
    let master_weights = precision.master_weights_of(dtype);
    if !master_weights.fit(dtype) {
        return Err(ErrorKind::MasterWeights { dtype, found: precision.master_weights }.of(label));
    }
    let state = state.unwrap_or(precision.state_format(whole));
    check_state_format(group.hyperparameters.rule, state).map_err(|error| error.about(label))?;
    Ok(BlockLayout::new(group.hyperparameters.rule.states(), state, master_weights))
}

/// The rule offers the format for its states.
fn check_state_format(rule: Rule, found: StateFormat) -> Result<(), Error> {
    let form = rule.form();
    match form.refusal(found) {
        Some(reason) => Err(ErrorKind::StateFormat { form, found, reason }.into()),
        None => Ok(()),
    }
}

/// The learning rates of all columns are in their range.
fn check_factors(record: &Record, hyperparameters: &Hyperparameters) -> Result<(), Error> {
    check_largest_factor(&record.label, record.column_factors.as_deref(), hyperparameters)
}

fn check_largest_factor(
    label: &str,
    factors: Option<&[f32]>,
    hyperparameters: &Hyperparameters,
) -> Result<(), Error> {
    let largest = factors.into_iter().flatten().copied().fold(0.0, f32::max);
    let learning_rate = f64::from(largest) * hyperparameters.learning_rate;
    let scaled = hyperparameters.with_learning_rate(learning_rate);
    scaled.validate().map_err(|error| Error::from(error).about(label))
}

/// Parameters of a group have the states of its rule.
fn same_form(found: Rule, expected: Rule) -> Result<(), Error> {
    let (rules, forms) = ((found.kind(), expected.kind()), (found.form(), expected.form()));
    if rules.0 != rules.1 {
        return Err(ErrorKind::Rule { found: rules.0, expected: rules.1 }.into());
    }
    if forms.0 != forms.1 {
        return Err(ErrorKind::Form { found: forms.0, expected: forms.1 }.into());
    }
    Ok(())
}
